package network

import (
	"context"
	"errors"
	"fmt"
	"unsafe"

	"github.com/coracle-engine/coracle/guest/api"
	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// systemProxy reads the user's proxy as Windows' settings show it.
func systemProxy(context.Context) (api.Proxy, error) {
	k, err := registry.OpenKey(registry.CURRENT_USER, `Software\Microsoft\Windows\CurrentVersion\Internet Settings`, registry.QUERY_VALUE)
	if err != nil {
		return api.Proxy{}, fmt.Errorf("open internet settings: %w", err)
	}
	defer k.Close()
	if on, _, err := k.GetIntegerValue("ProxyEnable"); err != nil || on == 0 {
		return api.Proxy{}, nil
	}
	server, _, err := k.GetStringValue("ProxyServer")
	if err != nil {
		return api.Proxy{}, fmt.Errorf("read ProxyServer: %w", err)
	}
	override, _, _ := k.GetStringValue("ProxyOverride") // there need not be one
	return parseInternetSettings(server, override), nil
}

// hostCertificates finds the root authorities that Windows trusts.
func hostCertificates(_ context.Context, b *bundle) error {
	name, err := windows.UTF16PtrFromString("ROOT")
	if err != nil {
		return err
	}
	store, err := windows.CertOpenSystemStore(0, name)
	if err != nil {
		return fmt.Errorf("open the store of root certificates: %w", err)
	}
	defer windows.CertCloseStore(store, 0)
	var errs error
	for c, err := windows.CertEnumCertificatesInStore(store, nil); c != nil && err == nil; c, err = windows.CertEnumCertificatesInStore(store, c) {
		errs = errors.Join(errs, b.add("the store of root certificates", unsafe.Slice(c.EncodedCert, c.Length)))
	}
	return errs
}
