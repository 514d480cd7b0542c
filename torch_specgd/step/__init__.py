"""One step on matrices: batches of one shape, their orthogonalization, rules for the update.

`muon` is the step; it arranges `batches`, or sends what lies elsewhere through `pieces`.

The momentum's and the weights' arithmetic is `triton_kernels.multi_tensor`'s.
"""
