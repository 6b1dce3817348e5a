"""What runs conlst on a cluster: manifests, and the programs that check them."""
