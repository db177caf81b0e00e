"""Passes connections on, as a translation of addresses does: the server sees this host's address and port.

    relay.py LISTEN_HOST LISTEN_PORT HOST PORT

When a client is gone it forgets to tell the server, whose session stays. Ready when it has written a line.
"""

import socket
import sys
import threading

here, server = (sys.argv[1], int(sys.argv[2])), (sys.argv[3], int(sys.argv[4]))


def copy(source, target, tells_the_end):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    if tells_the_end:
        target.close()
    else:
        source.shutdown(socket.SHUT_WR)


listener = socket.create_server(here, backlog=64)
print("ready", flush=True)
while True:
    client, _ = listener.accept()
    far = socket.create_connection(server)
    threading.Thread(target=copy, args=(client, far, False), daemon=True).start()
    threading.Thread(target=copy, args=(far, client, True), daemon=True).start()
