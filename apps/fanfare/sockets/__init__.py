"""WebSockets below ASGI: a protocol class for uvicorn that costs an idle connection next to nothing.

    uvicorn myproject.asgi:application --ws fanfare.sockets.protocol:WebSocketProtocol

It is an ordinary ASGI WebSocket server, and it offers one thing more: an application may hand its connection over to a
listener and return, and is then called for each message, with no task, no queue and no scope kept.

No Django, and nothing of the rooms above: uvicorn loads it before the project.
"""
