def create_nccl_configs(master_addr, nodes, master_port=29500, backend=None):
    places = [
        (node_rank, local_rank, num_workers)
        for local_rank in range(max(num_workers for _, num_workers in nodes))
        for node_rank, (_, num_workers) in enumerate(nodes)
        if local_rank < num_workers
    ]
    return [
        NCCLConfig(
            master_addr, master_port, rank, len(places), local_rank, num_workers, node_rank, backend
        )
        for rank, (node_rank, local_rank, num_workers) in enumerate(places)
    ]
