"""A shop platform: each tenant is one shop, and `plans` is what the platform sells to all of them."""
