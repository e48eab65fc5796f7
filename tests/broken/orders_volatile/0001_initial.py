from importlib import import_module

Migration = import_module("examples.shop.orders.migrations.0001_initial").Migration
