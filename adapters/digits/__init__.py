"""The embedded generators: one small network trained on scikit-learn's digits with each family's own objective."""
