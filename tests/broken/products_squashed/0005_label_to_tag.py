from importlib import import_module

Migration = import_module("examples.shop.products.migrations.0005_label_to_tag").Migration
