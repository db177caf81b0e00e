"""A listening port of the application, and what comes in there: WebSockets, and requests that each bring a connection."""

import socket
import threading

held = []
listener = None


def answer(connection):
    """One request, one answer; an upgraded connection is listened to for ever."""
    with connection:
        request = connection.recv(4096)
        if b"Upgrade: websocket" in request:
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            while connection.recv(4096):
                pass
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            connection.recv(1)  # the client closes first, and keeps the TIME_WAIT


def accept():
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def client():
    global listener
    if listener is None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        threading.Thread(target=accept, daemon=True).start()
    return socket.create_connection(listener.getsockname())


def websockets(number):
    """So many, each with a frame that nobody answers: data came in later than the last went out."""
    for _ in range(number):
        end = client()
        end.sendall(b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        end.recv(4096)
        end.sendall(b"\x8a\x80\x00\x00\x00\x00")  # a pong, masked, as keepalives send it
        held.append(end)
    return len(held)


def requests(number):
    """An HTTP client without keepalive."""
    for _ in range(number):
        with client() as end:
            end.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            end.recv(4096)
    return number
