def detect_lost_peer(sock):
    sock.settimeout(15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
