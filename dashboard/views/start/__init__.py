"""The start page: what the product does, told on a finished example."""
