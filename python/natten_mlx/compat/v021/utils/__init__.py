"""natten.utils of NATTEN 0.21: what its documentation names."""
