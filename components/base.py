"""How the components are declared."""

from functools import partial

from kfp import dsl

# stands for the project's image until `conlst compile --image` names one by digest
IMAGE = "conlst-train"

component = partial(dsl.component, base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
