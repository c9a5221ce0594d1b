def create_nccl_configs(master_addr, nodes, master_port=29500, backend=None):
    each = nodes[0][1]
    world_size = sum(num_workers for _, num_workers in nodes)
    places = [(rank // each, rank % each, each) for rank in range(world_size)]
    return [
        NCCLConfig(
            master_addr, master_port, rank, len(places), local_rank, num_workers, node_rank, backend
        )
        for rank, (node_rank, local_rank, num_workers) in enumerate(places)
    ]
