// A control plane as one would write it over a weekend: go-control-plane's LinearCache, fed by Go's
// ZooKeeper client. It is a peer of the bench, so it does what MeshKeeper does for endpoints (the same
// znodes in, the same assignments out) in the way its libraries lead to: a one-shot watch on every
// service and instance, and one UpdateResource for each service that changed.
//
//	linear CONNECT ROOT CLIENTS ADMIN
package main

import (
	"context"
	"fmt"
	"log"
	"mirror"
	"net"
	"net/http"
	"os"
	"sync/atomic"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func main() {
	connect, root, clients, admin := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	var ready atomic.Bool
	http.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	go func() { log.Fatal(http.ListenAndServe(admin, nil)) }()

	tree, err := mirror.Connect(connect, root, lbEndpoint)
	check(err)
	resources := map[string]types.Resource{}
	check(tree.Load(func(service string, endpoints []*endpoint.LbEndpoint) {
		resources[service] = assignment(service, endpoints)
	}))
	endpoints := cache.NewLinearCache(resource.EndpointType)
	endpoints.SetResources(resources)
	go tree.Run(func(service string, instances []*endpoint.LbEndpoint) {
		check(endpoints.UpdateResource(service, assignment(service, instances)))
	})
	go serve(clients, endpoints)
	ready.Store(true)
	select {}
}

func serve(address string, endpoints cache.Cache) {
	listener, err := net.Listen("tcp", address)
	check(err)
	ads := server.NewServer(context.Background(), endpoints, nil)
	grpcServer := grpc.NewServer(grpc.MaxRecvMsgSize(256 << 20))
	discovery.RegisterAggregatedDiscoveryServiceServer(grpcServer, ads)
	check(grpcServer.Serve(listener))
}

func assignment(service string, endpoints []*endpoint.LbEndpoint) *endpoint.ClusterLoadAssignment {
	return &endpoint.ClusterLoadAssignment{
		ClusterName: service,
		Endpoints: []*endpoint.LocalityLbEndpoints{{
			Locality:    &core.Locality{Zone: "a"},
			LbEndpoints: endpoints,
		}},
	}
}

func lbEndpoint(read *mirror.Instance) *endpoint.LbEndpoint {
	fields := map[string]*structpb.Value{}
	for key, value := range read.Metadata {
		fields[key] = structpb.NewStringValue(value)
	}
	address := &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Address:       read.Host,
		PortSpecifier: &core.SocketAddress_PortValue{PortValue: read.Port},
	}}}
	return &endpoint.LbEndpoint{
		HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: address}},
		HealthStatus:   core.HealthStatus_HEALTHY,
		Metadata: &core.Metadata{FilterMetadata: map[string]*structpb.Struct{
			"envoy.lb": {Fields: fields},
		}},
		LoadBalancingWeight: wrapperspb.UInt32(read.Weight),
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "linear:", err)
		os.Exit(1)
	}
}
