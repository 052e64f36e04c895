"""The Explore page: a model, images, a plan, its cost, and Run."""
