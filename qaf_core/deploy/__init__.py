"""Files and runtimes a compressed network leaves for."""
