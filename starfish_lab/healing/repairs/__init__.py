"""Ways to give a pruned network new values without training: closed forms and layer-by-layer fits, one file each."""
