from importlib import import_module

Migration = import_module("tests.broken.products_squashed.0001_squashed_0005_label_to_tag").Migration
