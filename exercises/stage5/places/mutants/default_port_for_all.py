def create_nccl_configs(master_addr, nodes, master_port=29500, backend=None):
    places = [
        (node_rank, local_rank, num_workers)
        for node_rank, (_, num_workers) in enumerate(nodes)
        for local_rank in range(num_workers)
    ]
    return [
        NCCLConfig(
            master_addr, 29500, rank, len(places), local_rank, num_workers, node_rank, backend
        )
        for rank, (node_rank, local_rank, num_workers) in enumerate(places)
    ]
