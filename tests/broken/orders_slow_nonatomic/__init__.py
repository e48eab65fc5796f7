"""Neither 0003, which only waits, nor 0004, which creates a table before that, is atomic; both wait as orders_slow."""
