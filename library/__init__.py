"""Everything a training run is made of, in floors; see the folders."""
