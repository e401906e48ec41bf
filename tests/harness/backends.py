"""One interface to both backend SDKs of the vendor: `pusher` from PyPI and `pusher` from npm."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from tests.harness import pusherjs, receivers, sdk, servers

MASTER_KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="  # 32 bytes in base64

Json = Any


class Backend(Protocol):
    async def trigger(self, channels: str | list[str], event: str, data: Json, socket_id: str | None = None) -> Json:
        """The response body; every method returns it unless it says otherwise."""
        ...

    async def trigger_batch(self, batch: list[dict[str, Any]]) -> Json: ...

    async def send_to_user(self, user_id: str, event: str, data: Json) -> Json: ...

    async def terminate(self, user_id: str) -> Json: ...

    async def channel(self, channel: str, *attributes: str) -> Json: ...

    async def channels(self, prefix: str, *attributes: str) -> Json: ...

    async def users(self, channel: str) -> list[str]:
        """User ids, sorted."""
        ...

    async def webhook(self, request: receivers.Request) -> list[dict[str, Any]] | None:
        """The events of a webhook delivery; None if the SDK finds the signature invalid."""
        ...


class PyPi:
    def __init__(self, server: servers.Server) -> None:
        self._sdk = sdk.client(server, encryption_master_key_base64=MASTER_KEY)

    async def trigger(self, channels: str | list[str], event: str, data: Json, socket_id: str | None = None) -> Json:
        return await asyncio.to_thread(self._sdk.trigger, channels, event, data, socket_id)

    async def trigger_batch(self, batch: list[dict[str, Any]]) -> Json:
        return await asyncio.to_thread(self._sdk.trigger_batch, batch)

    async def send_to_user(self, user_id: str, event: str, data: Json) -> Json:
        return await asyncio.to_thread(self._sdk.send_to_user, user_id, event, data)

    async def terminate(self, user_id: str) -> Json:
        return await asyncio.to_thread(self._sdk.terminate_user_connections, user_id)

    async def channel(self, channel: str, *attributes: str) -> Json:
        return await asyncio.to_thread(self._sdk.channel_info, channel, list(attributes))

    async def channels(self, prefix: str, *attributes: str) -> Json:
        return await asyncio.to_thread(self._sdk.channels_info, prefix, list(attributes))

    async def users(self, channel: str) -> list[str]:
        answer = await asyncio.to_thread(self._sdk.users_info, channel)
        return sorted(user["id"] for user in answer["users"])

    async def webhook(self, request: receivers.Request) -> list[dict[str, Any]] | None:
        key, signature = request.headers["X-Pusher-Key"], request.headers["X-Pusher-Signature"]
        valid = self._sdk.validate_webhook(key, signature, request.body.decode())
        return None if valid is None else list(valid["events"])


class Npm:
    """`client`: from `Node.backend`, created with MASTER_KEY."""

    def __init__(self, client: pusherjs.Client) -> None:
        self._client = client

    async def _request(self, method: str, *arguments: Any) -> Json:
        answer = await self._client.call(method, *arguments)
        assert answer["status"] == 200
        return answer["body"]

    async def trigger(self, channels: str | list[str], event: str, data: Json, socket_id: str | None = None) -> Json:
        return await self._request("trigger", channels, event, data, {"socket_id": socket_id} if socket_id else {})

    async def trigger_batch(self, batch: list[dict[str, Any]]) -> Json:
        return await self._request("triggerBatch", batch)

    async def send_to_user(self, user_id: str, event: str, data: Json) -> Json:
        return await self._request("sendToUser", user_id, event, data)

    async def terminate(self, user_id: str) -> Json:
        return await self._request("terminateUserConnections", user_id)

    async def channel(self, channel: str, *attributes: str) -> Json:
        params = {"info": ",".join(attributes)} if attributes else {}
        return await self._request("get", {"path": f"/channels/{channel}", "params": params})

    async def channels(self, prefix: str, *attributes: str) -> Json:
        params = {"filter_by_prefix": prefix, **({"info": ",".join(attributes)} if attributes else {})}
        return await self._request("get", {"path": "/channels", "params": params})

    async def users(self, channel: str) -> list[str]:
        answer = await self._request("get", {"path": f"/channels/{channel}/users"})
        return sorted(user["id"] for user in answer["users"])

    async def webhook(self, request: receivers.Request) -> list[dict[str, Any]] | None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        answer = await self._client.call("webhook", {"headers": headers, "rawBody": request.body.decode()})
        return list(answer["events"]) if answer["valid"] else None
