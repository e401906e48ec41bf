"""The React and Vue code of docs/how-to/frontends.md, in Node with pusher-js and a server."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable

import pytest

from tests.harness import calls, pusherjs, servers
from tests.unit.docs import pages

Name = Callable[[str], str]

PAGE = pages.ROOT / "docs/how-to/frontends.md"
PATIENCE_S = 60.0

CLIENT = """
import Pusher from "pusher-js";
const pusher = new Pusher(process.env.KEY, {
  cluster: "", wsHost: "127.0.0.1", wsPort: Number(process.env.PORT), forceTLS: false, enabledTransports: ["ws"],
});
const name = process.env.CHANNEL;
const say = (what) => console.log(JSON.stringify(what));
pusher.subscribe(name).bind("pusher:subscription_succeeded", () => say("subscribed"));
"""

REACT = """
import { act, createElement } from "react";
import { create } from "react-test-renderer";
globalThis.IS_REACT_ACT_ENVIRONMENT = true;
const handle = (data) => { say(data); };
function Orders() {
  useChannel(pusher, name, "created", handle);
  return useConnectionState(pusher);
}
let root;
await act(async () => { root = create(createElement(Orders)); });
pusher.channel(name).bind("end", async () => {
  await act(async () => {});
  say(root.toJSON());
  await act(async () => root.unmount());
  pusher.channel(name).emit("created", "after the unmount");
  pusher.disconnect();
});
"""

VUE = """
import { createRenderer, h, watch } from "vue";
const node = () => ({}), none = () => null;
const { createApp } = createRenderer({
  createElement: node, createText: node, createComment: node, insert: none, remove: none, patchProp: none,
  setText: none, setElementText: none, parentNode: none, nextSibling: none,
});
const app = createApp({
  setup() {
    const latest = useLatest(pusher, name, "created");
    watch(latest, (data) => say(data), { flush: "sync" });
    return () => h("p");
  },
});
app.mount({});
pusher.channel(name).bind("end", () => {
  say("connected");
  app.unmount();
  pusher.channel(name).emit("created", "after the unmount");
  pusher.disconnect();
});
"""


@pytest.mark.parametrize(("library", "program"), [("react", REACT), ("vue", VUE)], ids=["React", "Vue"])
def test_snippet_gets_events_until_its_component_unmounts(
    uvicorn: servers.Server, pusher_js: pusherjs.Runtime, name: Name, library: str, program: str
) -> None:
    channel = name("orders")
    (code,) = [one.text for one in pages.blocks(PAGE) if f'from "{library}"' in one.text]
    with subprocess.Popen(
        [pusher_js.executable, "--input-type=module"],
        cwd=pusherjs.CLIENTS,
        env={"PATH": "/usr/bin:/bin", "KEY": uvicorn.application.key, "PORT": str(uvicorn.port), "CHANNEL": channel},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(PATIENCE_S, process.kill)
        timer.start()
        process.stdin.write(code.replace("export ", "") + CLIENT + program)
        process.stdin.close()
        assert json.loads(process.stdout.readline()) == "subscribed"
        calls.publish(uvicorn, channel, "created", '{"id": 7}')
        assert json.loads(process.stdout.readline()) == {"id": 7}
        calls.publish(uvicorn, channel, "end", "{}")
        assert [json.loads(line) for line in process.stdout] == ["connected"]
        timer.cancel()
