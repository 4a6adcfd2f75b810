"""The data set of the first run: scikit-learn's digits and photographs, drawn scenes, and learning in context.

`build.build(folder)` writes the default data set, `bindings.write_bindings(folder, config)` the pages whose labels
mean something else on every page; `manifest.read_manifest(folder)` says what a folder holds.
"""
