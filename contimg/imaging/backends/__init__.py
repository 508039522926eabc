"""The imagers: `prepare(stokes, options, workdir)` gives an input, `deconvolve(request)` a
Deconvolved."""
