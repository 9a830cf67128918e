package main

import (
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/xds"
)

// serve answers every call with the name, once it got its listener. It prints a line with its port, and
// one for each change of its serving mode.
func serve(argument string) error {
	name, port, _ := strings.Cut(argument, "=")
	if port == "" {
		port = "0"
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		return err
	}
	answer := func(_ any, stream grpc.ServerStream) error {
		var request []byte
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		reply := []byte(name)
		return stream.SendMsg(&reply)
	}
	mode := func(_ net.Addr, mode xds.ServingModeChangeArgs) {
		reason := ""
		if mode.Err != nil {
			reason = mode.Err.Error()
		}
		say(map[string]any{"mode": mode.Mode.String(), "reason": reason})
	}
	server, err := xds.NewGRPCServer(
		grpc.UnknownServiceHandler(answer), grpc.ForceServerCodec(raw{}), xds.ServingModeCallback(mode))
	if err != nil {
		return err
	}
	say(map[string]any{"backend": name, "port": listener.Addr().(*net.TCPAddr).Port})
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		server.GracefulStop()
	}()
	return server.Serve(listener)
}
