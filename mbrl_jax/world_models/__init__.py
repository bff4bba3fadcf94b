"""World models: one file a model, each a `WorldModel` record made from a config."""
