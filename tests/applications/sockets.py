"""Holds N connections to itself on a port of 127.0.0.1, and gives the price of a bare dump of the host's sockets.

    sockets.py PORT N

Commands as in pooled.py: `dump` answers with the milliseconds of CPU that one netlink dump of all TCP sockets (v4 and
v6, with tcp_info, nothing parsed) takes; the least anybody has to pay who lists sockets. `ss` answers with those of
`ss -tnp`, which also names the processes. `churn` opens and closes forty connections more; `more` opens one and keeps it.
"""

import json
import os
import resource
import socket
import struct
import subprocess
import sys
import time

port, number = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (2 * number + 200, 2 * number + 200))
listener = socket.create_server(("127.0.0.1", port), backlog=1024)
held = []
for _ in range(number):
    held.append(socket.create_connection(("127.0.0.1", port)))
    held.append(listener.accept()[0])

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, DUMP, DONE = 4, 20, 0x301, 3
ALL_BUT_TIME_WAIT = 0xFFF & ~(1 << 6)
answer = bytearray(1 << 18)


def dump():
    began = time.process_time()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_SOCK_DIAG) as kernel:
        for family in (socket.AF_INET, socket.AF_INET6):
            # struct inet_diag_req_v2: family, TCP, the extension INET_DIAG_INFO, states, and an empty socket id.
            request = struct.pack("BBBBI48x", family, socket.IPPROTO_TCP, 1 << 1, 0, ALL_BUT_TIME_WAIT)
            kernel.send(struct.pack("IHHII", 16 + len(request), SOCK_DIAG_BY_FAMILY, DUMP, 1, 0) + request)
            while kernel.recv_into(answer):
                if struct.unpack_from("IH", answer)[1] == DONE:
                    break
    return 1000 * (time.process_time() - began)


def ss():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["ss", "-tnp"], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def churn():
    for _ in range(40):
        socket.create_connection(("127.0.0.1", port)).close()
        listener.accept()[0].close()
    return 40


def more():
    held.append(socket.create_connection(("127.0.0.1", port)))
    held.append(listener.accept()[0])
    return len(held) // 2


COMMANDS = {"dump": dump, "ss": ss, "churn": churn, "more": more}
print(json.dumps({"ready": os.getpid()}), flush=True)
for line in sys.stdin:
    command = COMMANDS.get(line.strip())
    print(json.dumps({"did": command()} if command else {"failed": "not a command"}), flush=True)
os._exit(0)
