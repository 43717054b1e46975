"""References: data sets, label files, and the reference statistics built from them."""
