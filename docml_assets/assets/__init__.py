"""The assets of a run, one module each: thin bodies over the functions of `docml_assets/steps/`, with their checks beside them."""
