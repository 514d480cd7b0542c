"""Which schedule, form, precision and tiles an orthogonalization takes."""
