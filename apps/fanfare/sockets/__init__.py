"""Connections below ASGI, for uvicorn: a WebSocket class, and limits for HTTP connections.

    uvicorn myproject.asgi:application --ws fanfare.sockets.protocol:WebSocketProtocol

The WebSocket class is an ordinary ASGI server with one addition: an application may hand its connection over to a
listener and return. The listener is then called for each message, and no task, queue or scope is kept.

uvicorn imports this package before the project, so it imports no Django and nothing of the layers above.
"""
