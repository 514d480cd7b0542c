"""Second station: where descent would take each weight, measured without a trace on the model."""
