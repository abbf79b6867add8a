// Command addons is CoreDNS and metrics-server in one binary: they share most of their packages (client-go, gRPC,
// Prometheus), so one link instead of two. CoreDNS has only the plugins that a cluster's DNS is made of: without the
// clouds' clients it is a third as large.
//
// The program is chosen by the name the binary was called by (a symlink): coredns, metrics-server.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/component-base/cli"
	metricsserver "sigs.k8s.io/metrics-server/cmd/metrics-server/app"
)

// programs maps a name to what runs it. Each reads os.Args and returns the exit code.
var programs = map[string]func() int{
	"coredns": func() int { coremain.Run(); return 0 },
	"metrics-server": func() int {
		return cli.Run(metricsserver.NewMetricsServerCommand(genericapiserver.SetupSignalHandler()))
	},
}

func main() {
	run, ok := programs[filepath.Base(os.Args[0])]
	if !ok {
		fmt.Fprintln(os.Stderr, "addons: call it coredns or metrics-server")
		os.Exit(2)
	}
	os.Exit(run())
}
