from importlib import import_module

Migration = import_module("examples.shop.products.migrations.0002_seed_categories").Migration
