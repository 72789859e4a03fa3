//go:build !race

package network

const coarse = false
