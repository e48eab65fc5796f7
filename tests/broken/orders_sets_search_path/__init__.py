"""0003 sets search_path to public, then creates a table: it lands outside the tenant."""
