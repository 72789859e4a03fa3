//go:build race

package network

// coarse makes a scan under the race detector, which makes each packet cost much more, ask fewer ports.
const coarse = true
