// A dubbo-go provider of the service fleet.Clock over the protocol tri, registered at interface level below
// /dubbo, at application level below /services, or at both.
//
// Arguments: CONNECT, the level (interface, application or all), the port that it listens on and registers, and
// PARAMETER=VALUE: `warmUp` with a duration, or any parameter of the registered URL. At the end of its input it leaves
// in order.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"dubbo.apache.org/dubbo-go/v3"
	_ "dubbo.apache.org/dubbo-go/v3/cluster/cluster/failover"
	_ "dubbo.apache.org/dubbo-go/v3/cluster/loadbalance/random"
	_ "dubbo.apache.org/dubbo-go/v3/filter/accesslog"
	_ "dubbo.apache.org/dubbo-go/v3/filter/echo"
	_ "dubbo.apache.org/dubbo-go/v3/filter/exec_limit"
	_ "dubbo.apache.org/dubbo-go/v3/filter/generic"
	_ "dubbo.apache.org/dubbo-go/v3/filter/graceful_shutdown"
	_ "dubbo.apache.org/dubbo-go/v3/filter/token"
	_ "dubbo.apache.org/dubbo-go/v3/filter/tps"
	_ "dubbo.apache.org/dubbo-go/v3/filter/tps/limiter"
	_ "dubbo.apache.org/dubbo-go/v3/filter/tps/strategy"
	"dubbo.apache.org/dubbo-go/v3/graceful_shutdown"
	_ "dubbo.apache.org/dubbo-go/v3/metadata/mapping/metadata"
	_ "dubbo.apache.org/dubbo-go/v3/metadata/report/zookeeper"
	"dubbo.apache.org/dubbo-go/v3/protocol"
	_ "dubbo.apache.org/dubbo-go/v3/protocol/triple"
	_ "dubbo.apache.org/dubbo-go/v3/proxy/proxy_factory"
	"dubbo.apache.org/dubbo-go/v3/registry"
	_ "dubbo.apache.org/dubbo-go/v3/registry/directory"
	_ "dubbo.apache.org/dubbo-go/v3/registry/protocol"
	_ "dubbo.apache.org/dubbo-go/v3/registry/servicediscovery"
	_ "dubbo.apache.org/dubbo-go/v3/registry/zookeeper"
	"dubbo.apache.org/dubbo-go/v3/server"
)

// Clock is what it provides.
type Clock struct{}

// Now is the milliseconds since the epoch.
func (*Clock) Now(context.Context, string) (string, error) {
	return strconv.FormatInt(time.Now().UnixMilli(), 10), nil
}

// Reference names the service.
func (*Clock) Reference() string {
	return "Clock"
}

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(connect, level, port string, parameters []string) error {
	number, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	instance, err := dubbo.NewInstance(
		dubbo.WithName("clocks"),
		dubbo.WithRegistry(registryOptions(connect, level)...),
		dubbo.WithProtocol(protocol.WithTriple(), protocol.WithIp("127.0.0.1"), protocol.WithPort(number)),
		dubbo.WithShutdown(
			graceful_shutdown.WithoutInternalSignal(),
			graceful_shutdown.WithTimeout(time.Second),
			graceful_shutdown.WithStepTimeout(100*time.Millisecond),
			graceful_shutdown.WithConsumerUpdateWaitTime(time.Millisecond),
		),
	)
	if err != nil {
		return err
	}
	options, err := serverOptions(parameters)
	if err != nil {
		return err
	}
	clocks, err := instance.NewServer(options...)
	if err != nil {
		return err
	}
	if err := clocks.RegisterService(&Clock{}, server.WithInterface("fleet.Clock")); err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- clocks.Serve() }()
	fmt.Println("ready")
	ended := make(chan struct{})
	go func() {
		lines := bufio.NewScanner(os.Stdin)
		for lines.Scan() {
		}
		close(ended)
	}()
	select {
	case err := <-failed:
		return err
	case <-ended:
	}
	return graceful_shutdown.Shutdown(context.Background())
}

func registryOptions(connect, level string) []registry.Option {
	options := []registry.Option{
		registry.WithZookeeper(),
		registry.WithAddress(connect),
		registry.WithTimeout(4 * time.Second),
		registry.WithoutUseAsConfigCenter(),
	}
	switch level {
	case "interface":
		return append(options, registry.WithRegisterInterface())
	case "application":
		return append(options, registry.WithRegisterService())
	default:
		return append(options, registry.WithRegisterServiceAndInterface())
	}
}

func serverOptions(parameters []string) ([]server.ServerOption, error) {
	var options []server.ServerOption
	for _, parameter := range parameters {
		key, value, _ := strings.Cut(parameter, "=")
		switch key {
		case "warmUp":
			lasts, err := time.ParseDuration(value)
			if err != nil {
				return nil, err
			}
			options = append(options, server.WithServerWarmup(lasts))
		default:
			options = append(options, server.WithServerParam(key, value))
		}
	}
	return options, nil
}
