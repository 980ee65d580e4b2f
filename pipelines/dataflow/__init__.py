"""Starting a build on Dataflow by a flex template."""
