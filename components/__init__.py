"""One Kubeflow component a file: inputs, outputs, one call into a stage.

KFP copies the body of a component into the pipeline, so a body imports what it needs. It runs on the project's own image,
where all of conlst is installed; nothing is installed at run time.
"""
