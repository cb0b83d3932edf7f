"""Running programs that strangers or models wrote, so that nothing they do lasts or reaches anybody else."""
