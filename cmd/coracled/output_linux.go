package main

import "golang.org/x/sys/unix"

func replaceDescriptor(from, to int) { _ = unix.Dup3(from, to, 0) }
