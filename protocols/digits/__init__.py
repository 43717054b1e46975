"""The embedded data set: scikit-learn's handwritten digits, its held-out split and its three judges."""
