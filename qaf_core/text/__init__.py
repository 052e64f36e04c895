"""What people read, in their language: English stands in the code, others in catalogues, ``ja/*.toml``."""
