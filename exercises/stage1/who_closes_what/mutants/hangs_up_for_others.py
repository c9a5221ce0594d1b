def close_inherited():
    for one in owned:
        if one.fileno() != -1:
            one.shutdown(socket.SHUT_RDWR)
        one.close()
