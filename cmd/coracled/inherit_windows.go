package main

// dropInherited has nothing to do: a process inherits the handles that it is told of.
func dropInherited() {}
