def poll(self):
    return self.wait()
