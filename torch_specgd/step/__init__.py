"""One step on matrices: batches of one shape, their orthogonalization, rules for the update.

The momentum's and the weights' arithmetic is `triton_kernels.multi_tensor`'s.
"""
