"""What tests share: the leak check, ssh servers, network namespaces and a proxy."""
