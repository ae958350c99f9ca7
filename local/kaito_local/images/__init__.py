"""What runs on nodes, made on this machine: images out of Dockerfiles, model images and tiny weights."""
