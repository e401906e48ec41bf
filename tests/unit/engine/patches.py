"""Changes of a line of an engine's source, made at test time: `mutants` is a list of them."""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_FUTURE = "from __future__ import annotations\n"
_mutated: dict[Any, str] = {}  # the source of each changed function: it is in no file


@dataclass(frozen=True, slots=True)
class Patch:
    """`where`: `module:function` or `module:Class.method`, or `module:file.sql` for a file that the module's `_script`
    reads, or `module:file.lua` for the scripts of the module. `old` stands there once or more; each is replaced by
    `new`."""

    where: str
    old: str
    new: str

    def apply(self) -> Callable[[], None]:
        """Change it in this process. Answers a function that undoes it."""
        name, _, path = self.where.partition(":")
        module = importlib.import_module(name)
        if path.endswith(".lua"):
            return self._apply_to_lua(module)
        if path.endswith(".sql"):
            return self._apply_to_script(module, path)
        owner: Any = module
        *parents, attribute = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        before = inspect.getattr_static(owner, attribute)
        function = getattr(owner, attribute)
        source = _mutated.get(function) or textwrap.dedent(inspect.getsource(function))
        assert self.old in source, f"{self.where} does not contain {self.old!r} any more"
        found: dict[str, Any] = {}
        source = source.replace(self.old, self.new)
        exec(compile(_FUTURE + source, f"mutant of {self.where}", "exec"), module.__dict__, found)
        _mutated[found[attribute]] = source
        setattr(owner, attribute, found[attribute])
        return lambda: setattr(owner, attribute, before)

    def _apply_to_lua(self, module: Any) -> Callable[[], None]:
        """In every script of the module that contains the line."""
        before = {name: value for name, value in vars(module).items() if isinstance(value, module.Script)}
        changed = {
            name: module.Script(script.text.replace(self.old, self.new))
            for name, script in before.items()
            if self.old in script.text
        }
        assert changed, f"{self.where} does not contain {self.old!r} any more"
        everything = module.ALL
        vars(module).update(changed, ALL=tuple({**before, **changed}.values()))
        return lambda: vars(module).update(before, ALL=everything)

    def _apply_to_script(self, module: Any, file: str) -> Callable[[], None]:
        before = module._script

        def changed(name: str, *arguments: Any) -> bytes:
            text: bytes = before(name, *arguments)
            if name == file:
                [address] = arguments
                old, new = (
                    part.replace("{schema}", f'"{address.schema}"').replace("{form}", address.form).encode()
                    for part in (self.old, self.new)
                )
                assert old in text, f"{self.where} does not contain {self.old!r} any more"
                text = text.replace(old, new)
            return text

        module._script = changed
        return lambda: setattr(module, "_script", before)
